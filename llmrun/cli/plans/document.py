"""Predictions as JSON."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrun.models.levels import LevelFile, Levels
    from llmrun.planning.predict.costs import Costs
    from llmrun.planning.predict.prediction import Prediction, Question, Range, Source


def document(
    levels: Levels, source: Source, rows: list[tuple[LevelFile, Prediction]], asked: Question, costs: Costs
) -> dict[str, Any]:
    return {
        "model": model_of(levels),
        "machine": dict(source.machine()),
        "rows": [_row(file, found, asked, costs) for file, found in rows],
    }


def model_of(levels: Levels) -> dict[str, Any]:
    first, one = levels.files[0], len(levels.files) == 1
    header = first.header
    return {
        "name": levels.name,
        "path": os.fspath(first.path) if one and first.path else None,
        "architecture": header.architecture,
        "quantization": header.quantization_label if one else None,
        "n_params": header.n_params,
        "weight_bytes": header.weight_bytes if one else None,
    }


def _row(file: LevelFile, found: Prediction, asked: Question, costs: Costs) -> dict[str, Any]:
    return {
        "quant": file.quant,
        "file_bytes": file.file_bytes,
        "fits": found.fits,
        "n_gpu_layers": found.n_gpu_layers,
        "n_ctx": found.n_ctx,
        "memory_bytes": dict(found.memory_bytes),
        "pp_tps": range_of(found.prefill_tps),
        "ttft_s": range_of(found.ttft_s(asked.n_prompt)),
        "tg_tps": {str(depth): range_of(each) for depth, each in found.decode_tps.items()},
        "download_bytes": file.download_bytes,
        "download_s": costs.download_s(file.download_bytes),
        "joules_per_mtok": range_of(costs.joules_per_mtok(found)),
        "price_per_mtok": range_of(costs.price_per_mtok(found)),
    }


def range_of(value: Range | None) -> dict[str, float] | None:
    return None if value is None else {"low": value.low, "mid": value.mid, "high": value.high}
