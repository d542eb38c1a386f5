"""How much memory this process has had at most, since it was asked to forget what was before."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

GIB = 2**30


def forget_peaks() -> bool:
    """Begin again at what there is now; False where the system cannot, and a peak would be that of the whole process.

    Another stage that runs in this process at the same time counts too.
    """
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peaks() -> dict[str, float | None]:
    """`peak_gib`, resident memory, and `gpu_peak_gib`, what torch held on its device; None where nobody can tell."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    return {
        "peak_gib": _resident(),
        "gpu_peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 4) if torch is not None and on_gpu else None,
    }


def _resident() -> float | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / GIB, 4)
    return None
