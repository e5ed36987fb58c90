"""Pure: is the task graph sound, what is ready, what is critical."""
