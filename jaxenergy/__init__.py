"""What a training set-up costs in joules, per compiled JAX update, with an interval."""

__version__ = "0.1.0"
