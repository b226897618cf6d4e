"""The founding questions: claims of others on CPUs and GPUs, each with what measuring gave."""
