"""Value functions without training: in-context policy evaluation for Gymnasium."""

__version__ = "0.1.0"
