"""Run a decoder token by token, with its key/value cache where it has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from qcompiler.errors import ModelError
from qcompiler.feeds import Array, Signature
from qcompiler.foreign import runtime_errors
from qcompiler.session import CUDA

MOST_POSITIONS = 1 << 20
"""Of a text, read and generated: caches of more would not fit into memory."""


class Decoder:
    """A decoder's state: what it has read so far.

    Three ways, chosen by the graph: one preallocated buffer that is both past and present
    (GroupQueryAttention writes in place, as onnxruntime-genai runs it), but for states and windows,
    which don't grow; present handed over as the next past; or, without a cache, the whole text
    again at each step.
    """

    def __init__(
        self, session: ort.InferenceSession, signature: Signature, *, batch: int = 1, capacity: int
    ) -> None:
        """`capacity`: positions the buffer holds, prompt and new tokens together."""
        if capacity > MOST_POSITIONS:
            raise ModelError(
                f"{capacity} positions are more than any model reads; ask for at most "
                f"{MOST_POSITIONS} tokens, prompt and new ones together"
            )
        if signature.kind != "decoder":
            raise ModelError("the model is no decoder: it has no `logits` to continue a text with")
        self._session = session
        self._signature = signature
        self._batch = batch
        self._capacity = capacity
        self._history = np.zeros((batch, 0), np.int64)
        self._past: dict[str, Any] = {}
        self._binding: ort.IOBinding | None = None
        self._device = "cuda" if session.get_providers()[0] == CUDA else "cpu"
        # Caches that are not bound to one buffer.
        self._handed_over = [cache for cache in signature.caches if not cache.grows]
        self._output_names = [spec.name for spec in signature.outputs]
        if signature.shares_buffer:
            self._binding = self._bind()

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return int(self._history.shape[1])

    @property
    def cached(self) -> bool:
        """Whether a step costs one token (True) or the whole text again (False)."""
        return bool(self._signature.caches)

    def step(self, token_ids: Array) -> Array:
        """Read `token_ids` [B, T]; returns the logits [B, V] after the last of them, float32."""
        if self.position + token_ids.shape[1] > self._capacity:
            raise ModelError(f"the text outgrows the {self._capacity} positions set aside for it")
        text = np.concatenate([self._history, token_ids.astype(np.int64)], axis=1)
        mask = np.ones(text.shape, np.int64)
        with runtime_errors(ModelError, "the model does not run on a text"):
            if self._binding is not None:
                logits = self._step_bound(self._binding, token_ids, mask)
            elif self._signature.caches:
                logits = self._step_handover(token_ids, mask)
            else:
                feeds = self._signature.feeds(text, mask)
                logits = self._session.run([self._signature.logits], feeds)[0]
        self._history = text
        last: Array = np.asarray(logits)[:, -1].astype(np.float32)
        return last

    def snapshot(self) -> tuple[Array, dict[str, Any]]:
        """The state, to come back to with `restore`; valid as long as the decoder lives."""
        return self._history, self._past

    def restore(self, state: tuple[Array, Mapping[str, Any]]) -> None:
        """Forget what was read after the snapshot was taken."""
        # A shared buffer keeps the earlier positions: later ones are overwritten, never read. What
        # is handed over is never written again.
        self._history, self._past = state[0], dict(state[1])

    def _bind(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        # Outputs come in the order of first binding: what grows, the rest, then the logits.
        for cache in (cache for cache in self._signature.caches if cache.grows):
            empty = cache.sized(self._batch, self._capacity)
            buffer = ort.OrtValue.ortvalue_from_numpy(empty, self._device, 0)
            binding.bind_ortvalue_input(cache.past, buffer)
            binding.bind_ortvalue_output(cache.present, buffer)
        for cache in self._handed_over:
            empty = ort.OrtValue.ortvalue_from_numpy(cache.empty(self._batch), self._device, 0)
            self._past[cache.past] = empty
            binding.bind_output(cache.present, self._device)
        binding.bind_output(self._signature.logits, "cpu")
        return binding

    def _step_bound(self, binding: ort.IOBinding, token_ids: Array, mask: Array) -> Array:
        for name, value in self._signature.text_inputs(token_ids, mask).items():
            binding.bind_cpu_input(name, value)
        for cache in self._handed_over:
            binding.bind_ortvalue_input(cache.past, self._past[cache.past])
            binding.bind_output(cache.present, self._device)  # a new one
        binding.bind_output(self._signature.logits, "cpu")
        self._session.run_with_iobinding(binding)
        *values, logits = binding.get_outputs()
        given = values[len(values) - len(self._handed_over) :]
        self._past = {c.past: v for c, v in zip(self._handed_over, given, strict=True)}
        found: Array = logits.numpy()
        return found

    def _step_handover(self, token_ids: Array, mask: Array) -> Array:
        to_ort = ort.OrtValue.ortvalue_from_numpy
        inputs = self._signature.text_inputs(token_ids, mask)
        feeds = {name: to_ort(value) for name, value in inputs.items()}
        for cache in self._signature.caches:
            past = self._past.get(cache.past)
            feeds[cache.past] = to_ort(cache.empty(self._batch)) if past is None else past
        values = self._session.run_with_ort_values(self._output_names, feeds)
        outputs = dict(zip(self._output_names, values, strict=True))
        self._past = self._signature.next_past(outputs)
        logits: Array = outputs[self._signature.logits].numpy()
        return logits
