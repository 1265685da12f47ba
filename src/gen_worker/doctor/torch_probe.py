"""Which GPUs the installed torch has code for, as words on stdout: `sm_80 sm_90 compute_90`."""

from typing import Any


def flags(torch: Any) -> str:
    """Return what torch was built for; nothing where that was processors alone."""
    if torch.version.cuda is None:
        return ""
    return str(torch._C._cuda_getArchFlags() or "")


def main() -> None:
    """Import torch and print."""
    import torch

    print(flags(torch))


if __name__ == "__main__":
    main()
