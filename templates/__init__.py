"""EZ templates: catalogue, package store, caches."""
