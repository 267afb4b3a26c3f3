"""What runs in the confined process. Standard library only: the fork server imports it as `rlm_worker.worker`."""
