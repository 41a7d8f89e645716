"""Commands that use trained models: ``sample``, ``denoise`` and ``export``."""
