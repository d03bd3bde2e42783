"""One stage of a flow run: DVC's process, the devices it waits for, what it says, how it ends."""
