"""What a process that trains with PyTorch is set to: threads, precision, the device awake."""

from typing import Any

import torch


def set_up(*, threads: int, tf32: bool | None, device: str) -> dict[str, Any]:
    """Sets threads and precision, and wakes the device.

    Args:
        threads: of operations on the CPU.
        tf32: whether a GPU may round the factors of float32 products to TF32; None on the CPU.
        device: `cpu` or `cuda`.

    Returns:
        What is in force, as plain JSON.
    """
    torch.set_num_threads(threads)
    # XLA tries a convolution's algorithms on the device before it takes one; with this, so does
    # PyTorch, in its first call. Else it guesses.
    torch.backends.cudnn.benchmark = True
    if tf32 is not None:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    if device == "cuda":
        torch.zeros((), device=device)
        torch.cuda.synchronize()
    return {
        "version": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32 if device == "cuda" else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark if device == "cuda" else None,
    }


def read_peak_device_bytes(device: str) -> int | None:
    """The most of a GPU's memory that was allocated at once; None on the CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None
