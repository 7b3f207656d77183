"""Records of instructions, chats and questions to ids, and which of them are learnt."""

from __future__ import annotations

from ds_llama.data.chat.encoder import ChatEncoder
from ds_llama.data.chat.records import FORMATS, BadRecord

__all__ = ["FORMATS", "BadRecord", "ChatEncoder"]
