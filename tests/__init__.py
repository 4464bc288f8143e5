"""The suite is a package, so that its parts can share helpers."""
