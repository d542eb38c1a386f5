"""Direct methods on the embedded world and in a toy, a moving reference beside a frozen one."""
