"""How a server accepts connections, watches over them, and reads its poems."""
