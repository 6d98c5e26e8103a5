"""Per-sample scores from logs that already exist."""

from .samples.readers import READERS, Reader, ReaderNote, read_samples

__all__ = ["read_samples", "Reader", "ReaderNote", "READERS"]
