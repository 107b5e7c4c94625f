"""Stages, datasets, Ray and the command line: composes ``idm_core`` and ``manifests``. Stages meet only in files."""
