"""Confines a worker: Landlock, seccomp, namespaces, resource limits. Standard library only."""
