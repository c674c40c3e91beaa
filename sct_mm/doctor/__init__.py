"""``python -m sct_mm.doctor``: what is installed, what conflicts, and the
command that fixes it. It needs the standard library alone."""
