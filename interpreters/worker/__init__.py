"""The code of the confined process. Standard library only: the fork server imports it as `rlm_worker.worker`."""
