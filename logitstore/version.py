"""The version of the package. The version of the *format* is in `logitstore.layout`."""

__version__ = "0.1.0"
