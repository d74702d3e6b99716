"""Tasks that can be found by their names."""

from collections.abc import AsyncIterator

from daglite import task


@task(retries=1)
async def double(number: int) -> int:
    return 2 * number


@task
def triple(number: int, *, plus: int = 0) -> int:
    return 3 * number + plus


@task
async def read(lines: int) -> AsyncIterator[int]:
    for line in range(lines):
        yield line


def plain(number: int) -> int:
    return number


elsewhere = task(plain)


class Shelf:
    def __init__(self, books: int = 0) -> None:
        self.books = books

    @task
    async def count(self, more: int = 0) -> int:
        return self.books + more

    @classmethod
    def make(cls) -> "Shelf":
        return cls(7)

    @task
    @classmethod
    def name_of(cls, suffix: str) -> str:
        return cls.__name__ + suffix

    @task
    @staticmethod
    def add(a: int, b: int) -> int:
        return a + b
