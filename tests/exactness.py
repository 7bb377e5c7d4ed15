"""The machines on which claims of equal bits hold, which tests marked `exact` make.

They say that a result has the same bits in another batch, beside other padding or with another number of threads.
`xycodec.nn.deterministic` got that out of two libraries by measurement: oneDNN's products, and MKL's where it runs its
code for Intel's AVX-512, as they are in torch's wheels for x86 processors. Whether another BLAS (OpenBLAS, Apple's
Accelerate, Arm's libraries) keeps its sums in order nobody has measured, so nothing is claimed of it.
"""

import platform

import torch


def not_claimed() -> str | None:
    """The reason why no equality of bits is claimed for this build of torch, or None where it is."""
    machine = platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return f"equal bits are claimed on x86 processors, this one is {machine}"
    for name, library in (("MKL", torch.backends.mkl), ("oneDNN", torch.backends.mkldnn)):
        if not library.is_available():
            return f"equal bits are claimed of products by {name}, which this torch is built without"
    return None
