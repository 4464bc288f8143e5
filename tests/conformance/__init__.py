"""Every stored case of published behaviour. A package, so that its modules can share code."""
