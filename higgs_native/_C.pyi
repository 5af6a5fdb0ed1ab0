from typing import TypedDict

class BuildInfo(TypedDict):
    torch_built_against: str
    compiler: str
    cpu_instruction_sets: list[str]
    cpu_instruction_sets_supported: list[str]
    cpu_instruction_set: str
    cpu_features: str
    cuda: bool
    cuda_version: str
    cuda_architectures: str

def build_info() -> BuildInfo: ...
def cpu_quota(root: str, /) -> int: ...
