"""A wrapper for Blackjack: the dealer's hidden card is drawn when it is turned over."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
from gymnasium.envs.toy_text.blackjack import BlackjackEnv, draw_card


class LateHoleCard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The same game to the player, in a simulator that holds nothing which the observation does not tell.

    `Blackjack-v1` deals the dealer's second card at the start. A copy of the simulator in the middle of a game keeps
    it, so that returns of copies average to the value of a state with that card, which nobody can see: over the states
    that a policy visits they are .38 from the values of what is seen, root mean square, where these spread by .44.
    Cards are drawn from an endless deck, so drawing it later changes nothing else.

    Args:
        env: Blackjack-v1, wrapped or not.

    Raises:
        TypeError: another environment.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, BlackjackEnv):
            raise TypeError(f"env must be Blackjack-v1, got {env.unwrapped}")

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        table = self.env.unwrapped
        assert isinstance(table, BlackjackEnv)
        if not action:  # the player sticks, and the dealer's cards are turned over
            table.dealer[1] = draw_card(table.np_random)
        return self.env.step(action)
