"""What a program costs: figures of machines, operations counted, time and memory predicted."""
