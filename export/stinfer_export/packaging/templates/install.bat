@echo off
rem Install stInfer from this folder, without a network:  install.bat FOLDER
rem It looks for Python $python; another is taken after  set PYTHON=C:\path\to\python.exe
setlocal EnableExtensions DisableDelayedExpansion
if defined PYTHON goto given
py -$python -c "" >nul 2>nul && goto launcher
python -c "import sys; sys.exit(sys.version_info[:2] != ($python_tuple))" >nul 2>nul && goto path
echo Error: Python $python is not here. Set PYTHON to where its python.exe is. 1>&2
exit /b 1

:given
set "PYTHON=%PYTHON:"=%"
"%PYTHON%" -I "%~dp0install.py" %*
exit /b %ERRORLEVEL%

:launcher
py -$python -I "%~dp0install.py" %*
exit /b %ERRORLEVEL%

:path
python -I "%~dp0install.py" %*
exit /b %ERRORLEVEL%
