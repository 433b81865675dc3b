"""A loss in bfloat16, except where the CPU's arithmetic in it was found to be wrong.

oneDNN, with which torch convolves on the CPU, gets the gradient of a kernel that is longer than
its image along an axis wrong in bfloat16: parts of it are whatever lay in memory before, another
patient's numbers perhaps. (Found with torch 2.13 on a processor with avx512_bf16, in 2D and 3D,
transposed or not; all other kernels that were tried, and all in float32, were right.) A patient's
gradient must be of that patient alone, so such convolutions are computed in float32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS: Final = {torch.conv1d, torch.conv2d, torch.conv3d}
_TRANSPOSED: Final = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}


@contextmanager
def in_precision(device: torch.device, *, bfloat16: bool) -> Iterator[None]:
    """Compute what is in the block in bfloat16 where an operation bears that, or else as it is."""
    if not bfloat16:
        yield
    elif device.type == "cpu":
        with torch.autocast("cpu", torch.bfloat16), _LongKernelsInFloat32():
            yield
    else:
        with torch.autocast(device.type, torch.bfloat16):
            yield


class _LongKernelsInFloat32(TorchFunctionMode):
    """Convolves anew, in float32, where a kernel is longer than the image."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func not in _CONVOLUTIONS and func not in _TRANSPOSED:
            return result
        named = dict(zip(("input", "weight"), args, strict=False)) | given
        # A transposed convolution's image is what it makes.
        image = result if func in _TRANSPOSED else named["input"]
        if not _longer(named["weight"], image, given.get("dilation", _dilation(func, args))):
            return result
        with torch.autocast("cpu", enabled=False):
            return func(*map(_exact, args), **{name: _exact(one) for name, one in given.items()})


def _longer(kernel: Tensor, image: Tensor, dilation: int | Sequence[int]) -> bool:
    sides = kernel.shape[2:]
    apart = [dilation] * len(sides) if isinstance(dilation, int) else dilation
    lengths = (d * (side - 1) + 1 for side, d in zip(sides, apart, strict=True))
    return any(
        length > side for length, side in zip(lengths, image.shape[-len(sides) :], strict=True)
    )


def _dilation(func: Callable[..., Any], args: Sequence[Any]) -> int | Sequence[int]:
    """The dilation among unnamed arguments; 1 where it was left out."""
    place = 7 if func in _TRANSPOSED else 5
    dilation: int | Sequence[int] = args[place] if len(args) > place else 1
    return dilation


def _exact(argument: Any) -> Any:
    return argument.float() if isinstance(argument, Tensor) else argument
