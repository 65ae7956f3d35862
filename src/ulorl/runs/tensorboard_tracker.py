"""Writes a run for TensorBoard, into the folder `tensorboard` of the run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulorl.config.tree import Config
from ulorl.runs.tracker import SampleRow, config_text


class TensorBoard:
    """Scalars by step, and as texts the configuration, a table of samples a step, and where the report is: TensorBoard
    stores no files.

    purge_after: hide what an earlier attempt of the run wrote after that step.
    """

    id = ""

    def __init__(self, run_dir: Path, config: Config, purge_after: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(run_dir / "tensorboard"))
        self._step = 0 if purge_after is None else purge_after
        # TensorBoard hides what it has from this step on, but not at its first such event: a new run has one too.
        first = 0 if purge_after is None else purge_after + 1
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first, session_log=start))
        self._write(self._step, [self._text("config", [f"```\n{config_text(config)}\n```"])])

    def write(self, step: int, metrics: Mapping[str, float | int], samples: Sequence[SampleRow]) -> None:
        """Write one step, and flush."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        if samples:
            cells = [cell for row in (SampleRow._fields, *samples) for cell in map(str, row)]
            values.append(self._text("samples", cells, columns=len(SampleRow._fields)))
        self._step = step
        self._write(step, values)

    def report(self, path: Path) -> None:
        """Write the name of the file, which lies beside TensorBoard's folder."""
        self._write(self._step, [self._text("report", [f"`{path.name}` in the folder of the run"])])

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        """Close the event file."""
        self._writer.close()

    def _write(self, step: int, values: Sequence[Any]) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def _text(self, tag: str, cells: Sequence[str], columns: int = 0) -> Any:
        """Return a Markdown text, or a table of such texts."""
        from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        sizes = [len(cells) // columns, columns] if columns else [len(cells)]
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])
        tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[cell.encode() for cell in cells])
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        metadata = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
        return self._summary.Value(tag=tag, tensor=tensor, metadata=metadata)
