from os import PathLike
from typing import TypedDict

import numpy as np
import numpy.typing as npt

class BuildInfo(TypedDict):
    version: str
    profile: str
    opt_level: str
    debug_assertions: bool
    rustc: str
    target: str

_Columns = tuple[
    npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.bool_], int, int
]

def build_info() -> BuildInfo: ...
def read_csv(path: str | PathLike[str]) -> _Columns: ...
def read_lackey(
    path: str | PathLike[str], window: int, max_instructions: int = 0
) -> _Columns: ...
