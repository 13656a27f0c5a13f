"""The peers' sides. These files run in the peers' own environments and import nothing of ours but `wire`."""
