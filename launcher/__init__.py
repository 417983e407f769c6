"""The launcher: starts multi-host JAX jobs on Ray and restarts them warm."""
