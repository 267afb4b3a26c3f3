"""An LM that tells its server who asks."""

from __future__ import annotations

from typing import Any

import dspy

from rlm_dspy.budget.metered_lm import role


class RoleLM(dspy.LM):
    """A `dspy.LM` that sends the role of each request, such as `act`, as its `user`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, user=role(), **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(*args, user=role(), **kwargs)
