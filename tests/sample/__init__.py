"""A package, so that its modules can share the exact problems."""
