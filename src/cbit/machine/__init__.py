"""The board: wires the parts below; profiles, the address map, the state folder."""
