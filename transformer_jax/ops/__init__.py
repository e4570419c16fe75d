"""Pure functions of arrays: what the layers are thin modules over."""
