"""Zachary's karate club: 34 members, 78 friendships, and the two clubs they split into."""

from __future__ import annotations

import torch

from deq_kernels.cells import Adjacency
from deq_kernels.models.ignn import Graphs
from deq_zoo.data.graph_splits import GraphSplits, node_splits

MEMBERS = 34
INSTRUCTOR, ADMINISTRATOR = 0, 33
VALIDATION = 8

# Each friendship once, under its member with the smaller number. Source: W. W. Zachary 1977, "An
# information flow model for conflict and fission in small groups", figure 1, counted from 0.
FRIENDS = {
    0: (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31),
    1: (2, 3, 7, 13, 17, 19, 21, 30),
    2: (3, 7, 8, 9, 13, 27, 28, 32),
    3: (7, 12, 13),
    4: (6, 10),
    5: (6, 10, 16),
    6: (16,),
    8: (30, 32, 33),
    9: (33,),
    13: (33,),
    14: (32, 33),
    15: (32, 33),
    18: (32, 33),
    19: (33,),
    20: (32, 33),
    22: (32, 33),
    23: (25, 27, 29, 32, 33),
    24: (25, 27, 31),
    25: (31,),
    26: (29, 33),
    27: (33,),
    28: (31, 33),
    29: (32, 33),
    30: (32, 33),
    31: (32, 33),
    32: (33,),
}
WITH_INSTRUCTOR = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21)


def load_karate(*, seed: int = 0) -> GraphSplits:
    """Who goes with whom, from the friendships and the two leaders' sides alone.

    Args:
        seed: draws the 8 members to choose by; the other 24 are those to report.

    Returns:
        One undirected graph without weights or features (`features=None`), with labels [34]: 0 for
        the instructor's club, 1 for the administrator's. Counted in training are the two leaders.
    """
    pairs = torch.tensor([(one, other) for one, others in FRIENDS.items() for other in others]).T
    adjacency = Adjacency.from_coo(
        torch.cat([pairs, pairs.flip(0)], 1), nodes=MEMBERS, symmetric=True
    )
    labels = torch.ones(MEMBERS, dtype=torch.int64)
    labels[list(WITH_INSTRUCTOR)] = 0
    leaders = torch.tensor([INSTRUCTOR, ADMINISTRATOR])
    order = torch.randperm(MEMBERS, generator=torch.Generator().manual_seed(seed))
    others = order[~torch.isin(order, leaders)]
    return node_splits(
        Graphs(adjacency=adjacency, labels=labels),
        train=leaders,
        validation=others[:VALIDATION],
        test=others[VALIDATION:],
        outputs=2,
    )
