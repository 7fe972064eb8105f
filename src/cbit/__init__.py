"""cbit: AMD's memory encryption (SME and SEV) as software."""

__version__ = "0.1.0"
