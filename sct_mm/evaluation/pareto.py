"""Find the Pareto front: the points that no other beats in cost and in
quality."""
from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) to which no other is at least as
    good in both and better in one, from the cheapest up."""
    order = sorted(range(len(points)),
                   key=lambda i: (points[i][0], -points[i][1]))
    best: list[int] = []
    for index in order:
        if not best or points[index][1] > points[best[-1]][1] or (
                points[index] == points[best[-1]]):
            best.append(index)
    return best
