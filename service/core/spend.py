"""
Posts that came this month, against the budget.

X bills each post that it delivers, a repeat on the same day excepted: at its cap of 250 posts a second a filtered
stream takes the 3 million posts of a month in 3 hours and 20 minutes. So whoever sets a budget is warned at nine
tenths of it, and at its end the connection is closed until the month is over. Months are those of UTC.

The count may pass the budget by what was on its way when it was reached: what X has delivered is billed, and kept.
"""

from datetime import UTC, datetime

NEAR = 0.9


class Spend:
    """
    Counts.

    Arguments:
        budget: posts a month; None for no limit.
        month: that `posts` were counted in, such as 2026-11.
        posts: how many came in that month.
    """

    def __init__(self, budget: int | None, month: str = "", posts: int = 0) -> None:
        self.budget = budget
        self.month = month
        self.posts = posts
        self._ends_at = 0.0
        self._warned = False

    def add(self, posts: int, now: float) -> None:
        """Posts have come that had not come before."""
        if now >= self._ends_at:
            self._turn(now)
        self.posts += posts

    def is_spent(self, now: float) -> bool:
        """Whether nothing more may come this month."""
        if self.budget is None or self.posts < self.budget:
            return False
        if now >= self._ends_at:
            self._turn(now)
        return self.posts >= self.budget

    def should_warn(self, now: float) -> bool:
        """Whether the budget is nearly spent; once a month. Called now and then it also begins each month on time."""
        if now >= self._ends_at:
            self._turn(now)
        if self.budget is None or self._warned or self.posts < self.budget * NEAR:
            return False
        self._warned = True
        return True

    def ends_at(self, now: float) -> float:
        """When the month is over, in seconds since 1970."""
        if now >= self._ends_at:
            self._turn(now)
        return self._ends_at

    def _turn(self, now: float) -> None:
        """Find out which month it is."""
        today = datetime.fromtimestamp(now, UTC)
        year, month = divmod(today.year * 12 + today.month, 12)
        self._ends_at = datetime(year, month + 1, 1, tzinfo=UTC).timestamp()
        name = today.strftime("%Y-%m")
        if self.month != name:
            self.month = name
            self.posts = 0
            self._warned = False
