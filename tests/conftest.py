"""Its place puts tests/ on the import path: the tests below it share board.py and hub_server.py."""
