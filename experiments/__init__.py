"""Thin absl-flag drivers around the library; the only place that knows absl."""
