from typing import TypedDict

class BuildFacts(TypedDict):
    compiler: str
    build_type: str
    torch_target: str
    torch_built_against: str
    isas: str
    cuda_compiler: str | None
    cuda_archs: str | None

class StreamPlan(TypedDict):
    regime: str
    tile: int
    tiles: int
    bytes_moved: int

class LaunchPlan(TypedDict):
    regime: str
    cluster: int
    tile: int
    tiles: int
    kept_rows: int
    shared_bytes: int
    launches: int
    bytes_moved: int

class CellPlan(TypedDict):
    regime: str
    blocks: int
    cluster: int
    rows_at_a_time: int
    weight_on_chip: bool
    rows_on_chip: int
    shared_bytes: int
    scratch_bytes: int
    launches: int

def build_facts() -> BuildFacts: ...
def plan_stream(
    *, batch: int, dim: int, rank: int, state_bytes: int, history_bytes: int, threads: int
) -> StreamPlan: ...
def plan_launch(
    *,
    batch: int,
    dim: int,
    capacity: int,
    state_bytes: int,
    history_bytes: int,
    multiprocessors: int,
    shared_bytes: int,
    max_cluster: int,
) -> LaunchPlan: ...
def plan_cells(
    *,
    samples: int,
    rows: int,
    dim: int,
    grouped: bool,
    accelerate: bool,
    state_bytes: int,
    accum_bytes: int,
    multiprocessors: int,
    shared_bytes: int,
    max_cluster: int,
) -> CellPlan: ...
