"""What tests of several ops share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnxruntime as ort
import pytest

BOTH = pytest.mark.parametrize("library", [True, False], ids=["library", "functions"])


def refusal(open_session, model) -> str:
    """Why no session is made of a model."""
    with pytest.raises(Exception) as caught:
        open_session(model)
    return str(caught.value)


def run_into(session, feeds, buffers: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Copies of all outputs, written into memory that held `buffers` before."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, np.asarray(value, order="C"))
    results = [ort.OrtValue.ortvalue_from_numpy(np.asarray(b, order="C")) for b in buffers]
    for output, result in zip(session.get_outputs(), results, strict=True):
        binding.bind_ortvalue_output(output.name, result)
    session.run_with_iobinding(binding)
    return [np.array(result.numpy()) for result in results]
