"""One function per command; their signatures are the options."""
