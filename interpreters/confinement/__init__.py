"""How a worker is confined: Landlock, seccomp, namespaces, resource limits. Standard library only."""
