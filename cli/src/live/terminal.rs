//! The view of a running test in the terminal: draws on the standard error, and reads keys.

mod draw;
mod figures;

use std::{
    io::{BufWriter, IsTerminal, Stderr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
        execute,
        terminal::{
            Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
            enable_raw_mode,
        },
    },
};
use rustix::{
    process::{Signal, getpgrp, getpid, kill_process},
    termios::tcgetpgrp,
};
use tokio::sync::watch;

use self::{
    draw::{View, draw},
    figures::Figures,
};
use super::{LiveFeed, LiveState};
use crate::output::allows_color;

/// Time that the view waits for a key before it looks for new numbers.
const KEY_TIMEOUT: Duration = Duration::from_millis(200);

/// The times of a series are rounded by less than this, in seconds.
const ROUNDING: f64 = 1e-6;

/// Returns true if a person can see the view and press its keys.
pub(crate) fn has_terminal() -> bool {
    let is_dumb = std::env::var("TERM").is_ok_and(|terminal| terminal == "dumb");
    let is_terminal = std::io::stderr().is_terminal() && std::io::stdin().is_terminal();
    // A process in the background would be stopped if it changed the terminal.
    is_terminal && !is_dumb && tcgetpgrp(std::io::stderr()).is_ok_and(|group| group == getpgrp())
}

/// A view that is being drawn by a thread of its own. It ends with the test, or when it is dropped.
#[derive(Debug)]
pub(crate) struct TerminalView {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TerminalView {
    /// Draws the states of a feed.
    ///
    /// # Errors
    /// When the terminal can't be switched to the view.
    pub(crate) fn start(feed: &LiveFeed) -> std::io::Result<Self> {
        let screen = Screen::enter()?;
        let states = feed.subscribe();
        let end = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&end);
        let thread = std::thread::Builder::new().name("terminal-view".into()).spawn(move || {
            // The error is about the terminal, so it can't be shown there.
            let _ = show(screen, states, &is_ended);
        })?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for TerminalView {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has restored the terminal too.
            let _ = thread.join();
        }
    }
}

/// The terminal in raw mode, on its other screen. Dropping it restores the terminal.
struct Screen(Terminal<CrosstermBackend<BufWriter<Stderr>>>);

impl Screen {
    fn enter() -> std::io::Result<Self> {
        enable_raw_mode()?;
        let terminal = execute!(std::io::stderr(), EnterAlternateScreen, Clear(ClearType::All))
            .and_then(|()| Terminal::new(CrosstermBackend::new(BufWriter::new(std::io::stderr()))));
        match terminal {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // Each step counts, also if the other fails.
    let _ = disable_raw_mode();
    let _ = execute!(std::io::stderr(), LeaveAlternateScreen);
}

fn show(
    mut screen: Screen,
    mut states: watch::Receiver<Option<LiveState>>,
    is_ended: &AtomicBool,
) -> std::io::Result<()> {
    let mut view = View::new(allows_color());
    let mut figures = Figures::default();
    let mut shown: Option<LiveState> = None;
    let mut is_changed = true;
    while !is_ended.load(Ordering::Acquire) {
        if states.has_changed().unwrap_or(false) {
            let state = states.borrow_and_update().clone();
            if state.as_ref().is_some_and(|state| state.is_over) {
                break;
            }
            if !view.is_frozen {
                shown = state;
                is_changed = true;
            }
        }
        if is_changed {
            if let Some(state) = &shown {
                // The series is that of the running test, also while the view is frozen.
                let end = state.result.elapsed_seconds + ROUNDING;
                figures.update(&state.series(), view.task_name(&state.result), end);
                screen.0.draw(|frame| draw(frame, &state.result, figures.points(), &view))?;
            }
            is_changed = false;
        }
        if event::poll(KEY_TIMEOUT)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let tasks = shown.as_ref().map_or(0, |state| state.result.tasks.len());
                    press(&mut view, key, tasks);
                    is_changed = true;
                }
                Event::Resize(..) => is_changed = true,
                _ => {}
            }
        }
    }
    Ok(())
}

/// Reacts to a key. In raw mode, the terminal sends no signal for Ctrl-C, so the view does.
fn press(view: &mut View, key: KeyEvent, tasks: usize) {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if is_control => stop(),
        KeyCode::Char('s' | 'q') if view.is_asking => {
            view.is_asking = false;
            stop();
        }
        KeyCode::Char('s' | 'q') => view.is_asking = true,
        KeyCode::Char('f' | ' ') => view.is_frozen = !view.is_frozen,
        KeyCode::Tab | KeyCode::Right | KeyCode::Char('t') => {
            view.task = (view.task + 1) % (tasks + 1);
        }
        KeyCode::BackTab | KeyCode::Left => view.task = (view.task + tasks) % (tasks + 1),
        _ => view.is_asking = false,
    }
}

/// Stops the test as Ctrl-C does.
fn stop() {
    // The process may send signals to itself.
    let _ = kill_process(getpid(), Signal::INT);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    #[test]
    fn keys_choose_tasks_and_freeze() {
        let mut view = View::new(true);
        for (code, task) in [
            (KeyCode::Tab, 1),
            (KeyCode::Tab, 2),
            (KeyCode::Tab, 0),
            (KeyCode::BackTab, 2),
            (KeyCode::Left, 1),
        ] {
            press(&mut view, key(code), 2);
            assert_eq!(view.task, task, "{code:?}");
        }
        press(&mut view, key(KeyCode::Char('f')), 2);
        assert!(view.is_frozen);
        // A stop needs a second key; any other key takes the first one back.
        press(&mut view, key(KeyCode::Char('s')), 2);
        assert!(view.is_asking);
        press(&mut view, key(KeyCode::Esc), 2);
        assert!(!view.is_asking);
    }
}
