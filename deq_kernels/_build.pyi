from typing import TypedDict

class BuildFacts(TypedDict):
    compiler: str
    build_type: str
    torch_target: str
    torch_built_against: str
    isas: str

class StreamPlan(TypedDict):
    regime: str
    tile: int
    tiles: int
    bytes_moved: int

def build_facts() -> BuildFacts: ...
def plan_stream(
    *, batch: int, dim: int, rank: int, state_bytes: int, history_bytes: int, threads: int
) -> StreamPlan: ...
