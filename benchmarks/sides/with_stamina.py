"""With stamina, without its log of retries, as nobody else writes one."""

import stamina
from stamina.instrumentation import set_on_retry_hooks

from ._work import CALLS, RETRIED, Flaky, Work, answer, one_by_one

flaky = Flaky()
again = stamina.retry(on=OSError, attempts=3, wait_initial=0, wait_max=0, wait_jitter=0)
set_on_retry_hooks([])


@again
async def retried(_: int) -> int:
    return await flaky()


WORK: Work = {
    "call": {"stamina": one_by_one(again(answer), CALLS)},
    "retry": {"stamina": one_by_one(retried, RETRIED)},
}
