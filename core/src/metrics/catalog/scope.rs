//! The tasks that a metric is measured on.

/// The tasks that a metric is measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskScope {
    /// All tasks.
    All,
    /// Tasks that send requests: `http` and `chat`.
    Requests,
    /// `chat` tasks.
    Chats,
    /// `chat` tasks with `stream: true`.
    StreamedChats,
    /// `webSocket` tasks.
    WebSockets,
    /// `webSocket` tasks with messages that await replies.
    WebSocketReplies,
}

impl TaskScope {
    /// Every scope that leaves out some tasks.
    pub const LIMITED: [Self; 5] = [
        Self::Requests,
        Self::Chats,
        Self::StreamedChats,
        Self::WebSockets,
        Self::WebSocketReplies,
    ];

    /// The tasks in words, and what to do when no task of a spec is among them.
    pub const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::All => ("all tasks", ""),
            Self::Requests => {
                ("http and chat tasks", "name one of these, or judge webSocketRoundTrip")
            }
            Self::Chats => ("chat tasks", "name a chat task, or judge another metric"),
            Self::StreamedChats => {
                ("streamed chat tasks", "name one of these, or set chat.stream to true")
            }
            Self::WebSockets => {
                ("webSocket tasks", "name a webSocket task, or judge another metric")
            }
            Self::WebSocketReplies => (
                "webSocket tasks with messages that await replies",
                "set send and replies of a webSocket task",
            ),
        }
    }
}
