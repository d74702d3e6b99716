"""With tenacity."""

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_none

from ._work import CALLS, RETRIED, Flaky, Work, answer, one_by_one

flaky = Flaky()
again = retry(stop=stop_after_attempt(3), wait=wait_none(), retry=retry_if_exception_type(OSError), reraise=True)


@again
async def retried(_: int) -> int:
    return await flaky()


WORK: Work = {
    "call": {"tenacity": one_by_one(again(answer), CALLS)},
    "retry": {"tenacity": one_by_one(retried, RETRIED)},
}
